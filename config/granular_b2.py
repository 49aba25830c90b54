# Granular of DINO-WM, NanoWM-B/2: 26.08 dB published after 15k steps.
# The launch script defaults to 8 GPUs, 64 clips per step; the released checkpoint's epochs mean 16, as here.
# Its 4-D actions were not normalised.
inherit('rt1_b2.py')
dataset = 'granular_sd'
out_dir = 'out/granular_b2'
frame_skip = 1
batch_size = 16
max_steps = 15_000
