# Diffusion Policy on PushT from pictures: sizes and recipe of the policy that LeRobot published, averaged
# weights besides; wants a GPU. First: python data/pusht/prepare.py
model = 'diffusion_policy'
dataset = 'pusht_image'
out_dir = 'out/pusht_diffusion'
seed = 1000

crop_shape = (84, 84)         # of 96 x 96, somewhere; when it acts, the middle

batch_size = 64
max_steps = 200_000
lr = 1e-4
lr_schedule = 'cosine'
warmup_steps = 500
weight_decay = 1e-6
betas = (0.95, 0.999)
grad_clip = 10.0
ema_decay = 0.9999
ema_power = 0.75
val_every = 5000
save_every = 5000
eval_every = 25_000           # test_mean_score over 50 starts
best_metric = 'eval/test_mean_score'
best_mode = 'max'
