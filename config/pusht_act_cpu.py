# ACT on PushT in minutes of one CPU core: nine points of the T instead of pictures, a small network. First:
# python data/pusht/prepare.py
model = 'act'
dataset = 'pusht_image'
out_dir = 'out/pusht_act_cpu'
seed = 0

obs = 'keypoints'
chunk_size = 16
n_action_steps = 8
dim_model = 128
n_heads = 4
dim_feedforward = 512
n_vae_encoder_layers = 2
dropout = 0.0                 # of so few steps, none is to spare

batch_size = 64
max_steps = 3200
lr = 1e-3
lr_schedule = 'cosine'
warmup_steps = 100
weight_decay = 1e-4
grad_clip = 10.0
ema_decay = 0.999
val_every = 800
save_every = 800
