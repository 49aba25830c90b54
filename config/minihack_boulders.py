# A NetHack room seen whole: walk, stop at trees and walls, push boulders. One tile is one token.
# python data/minihack/prepare.py --level=boulders
inherit('minihack_wm_cpu.py')
dataset = 'minihack_boulders'
out_dir = 'out/minihack_boulders'
seed = 1
heads = 4                      # one for each neighbour
neighbours = 2.0
skip = True
context_t = -1
change_weight = 20.0           # a move changes two or three tiles of 81
p_noise = 0.9
sample_steps = 1
batch_size = 12                # more steps count for more than more samples
max_steps = 1800
