# PushT of DINO-WM, NanoWM-B/2: 33.19 dB published after 100k steps on 8 GPUs of 8 clips.
# What that run really did: its validation actions were normalised with the validation split's own statistics;
# ours use those of the train split.
inherit('rt1_b2.py')
dataset = 'pusht_sd'
out_dir = 'out/pusht_b2'
frame_skip = 5
batch_size = 64
max_steps = 100_000
