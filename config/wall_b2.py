# Wall of DINO-WM, NanoWM-B/2: 34.05 dB published after 15k steps.
# The launch script defaults to 8 GPUs, 64 clips per step; the released checkpoint's epochs mean 16, as here.
# Its actions were not normalised. config/wall_cpu.py is the same world for a CPU.
inherit('rt1_b2.py')
dataset = 'wall_sd'
out_dir = 'out/wall_b2'
frame_skip = 5
batch_size = 16
max_steps = 15_000
