# Real video: a Unitree G1 picks up a bottle, 32 px, 6 Hz, four videos to learn from and two held out.
# The command that makes the data stands in data/lerobot/readme.md.
inherit('minihack_crop.py')
dataset = 'lerobot_g1video'
out_dir = 'out/g1_video'
seed = 1
frame_skip = 5                 # 30 Hz were recorded; a model frame is a sixth of a second
injection = 'adaln_fuse'
sample_steps = 1
context_t = -1
max_steps = 300
lr = 1e-3                      # with 3e-3 it learns the four videos by heart
