# Diffusion Policy on PushT in minutes of one CPU core: nine points of the T instead of pictures, a U-Net of
# 1.4 million parameters, ten calls per chunk. First: python data/pusht/prepare.py
model = 'diffusion_policy'
dataset = 'pusht_image'
out_dir = 'out/pusht_diffusion_cpu'
seed = 0

obs = 'keypoints'
down_dims = (32, 64, 128)     # (64, 128, 256) takes two and a half times as long per step
noise_scheduler_type = 'DDIM'
num_inference_steps = 10

batch_size = 64
max_steps = 6000
lr = 1e-3
lr_schedule = 'cosine'
warmup_steps = 100
weight_decay = 1e-6
betas = (0.95, 0.999)
grad_clip = 10.0
ema_decay = 0.999
val_every = 1500
save_every = 1500
