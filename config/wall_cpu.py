# The Wall world of DINO-WM in 32x32 pixels: a dot, two rooms, a door. Make the data in seconds:
# python data/wall/prepare.py --out=data/wall_pixels
inherit('minihack_crop.py')
dataset = 'wall_pixels'
out_dir = 'out/wall_cpu'
seed = 1
frame_skip = 4                 # a single move is 1 px: less than what a short run can learn to see
patch = 8
injection = 'adaln_fuse'
sample_steps = 1
p_noise = 0.9
batch_size = 32
max_steps = 1000
lr = 4e-3
