# A NetHack room seen whole: walk, stop at trees, push boulders. One tile is one token.
# python data/minihack/prepare.py --level=boulders
inherit('minihack_wm_cpu.py')
dataset = 'minihack_boulders'
out_dir = 'out/minihack_boulders'
seed = 1
injection = 'adaln_fuse'
p_noise = 0.9
skip = True
context_t = -1
change_weight = 20.0
sample_steps = 1
max_steps = 900
