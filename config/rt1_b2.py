# RT-1 (fractal), NanoWM-B/2: the published main run, 24.36 dB after 300k steps on 8 GPUs of 8 clips each.
# What that run really did: gradient clipping was configured (0.1 after 20k steps) but acted before backward,
# so it did nothing; warm-up was configured, but the constant schedule ignores it. Hence grad_clip = 0 and
# warmup_steps = 0.
model = 'nanowm'
dataset = 'rt1_sd'             # 4x32x32 latents of the SD-VAE, 7-D actions
out_dir = 'out/rt1_b2'
seed = 3407
batch_size = 64
max_steps = 300_000
lr = 1e-4
grad_clip = 0.0
save_every = 1000
keep = 1
keep_every = 10_000
