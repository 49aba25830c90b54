# Counter-Strike, NanoWM-L/2, 16 frames of which 4 are context; no metrics were published.
# What the released run really did: 100k steps, not 50k, and its epoch count means about 192 clips per step,
# neither the config's 6 nor the launch script's 4 per GPU. "320x512" is 256x256: the frames were stretched,
# the latents are 32x32.
inherit('rt1_b2.py')
dataset = 'csgo_sd'            # 51-D actions: 11 keys, 2 clicks, 23 + 15 mouse bins
out_dir = 'out/csgo_l2'
num_frames = 16
n_context = 4
depth = 24
hidden = 1024
heads = 16
sampling = 'full_sequence'
batch_size = 48
max_steps = 50_000
lr = 1e-5
