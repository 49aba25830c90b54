# The policy in minutes of one CPU core: nine points of the T instead of pictures.
inherit('pusht_imf.py')
obs = 'keypoints'
out_dir = 'out/pusht_cpu'

n_embd = 64
n_layer = 3
max_steps = 6000
lr = 1e-3
warmup_steps = 200
ema_decay = 0.999
ema_power = 0.0               # a ramp, (1 + n) / (10 + n): short runs have no time for the slower one
val_every = 1000
save_every = 1000
eval_every = 0
best_metric = 'val/loss'
best_mode = 'min'
