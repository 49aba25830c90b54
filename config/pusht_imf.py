# One-step policy for PushT from pictures, 300 epochs. First: python data/pusht/prepare.py
model = 'imf_policy'
dataset = 'pusht_image'
out_dir = 'out/pusht_imf'
seed = 42

batch_size = 64
max_steps = 117_300           # 300 epochs of 391
lr = 1e-4
lr_schedule = 'cosine'
min_lr = 0.0
warmup_steps = 1000
weight_decay = 1e-3
betas = (0.9, 0.95)
grad_clip = 0.0               # none, as published
ema_decay = 0.9999
ema_power = 0.75
val_every = 3910
save_every = 3910
eval_every = 19_550           # 50 epochs: test_mean_score over 50 starts
best_metric = 'eval/test_mean_score'
best_mode = 'max'
