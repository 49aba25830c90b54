# Point Maze of DINO-WM, NanoWM-B/2: 36.74 dB published after 30k steps.
# The launch script defaults to 8 GPUs, 64 clips per step; the released checkpoint's epochs mean 16, as here.
inherit('rt1_b2.py')
dataset = 'point_maze_sd'
out_dir = 'out/point_maze_b2'
frame_skip = 5
batch_size = 16
max_steps = 30_000
