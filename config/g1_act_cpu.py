# ACT on a real humanoid, Unitree G1, from what its head camera saw: the way from a LeRobot set to a policy,
# no good policy. Of five recordings it learns less than holding still (docs/act.md). The data, from a set at
# PATH; of another one --episodes, --val, --cameras and --group are others:
# python data/lerobot/prepare.py --src=PATH --out=data/lerobot_g1cam --val=5 --episodes=1,2,4,5,7,8 \
#     --cameras=cam_high --size=96x128 --group=arm=0-13:rad --group=hand=14-25:1
model = 'act'
dataset = 'lerobot_g1cam'
out_dir = 'out/g1_act_cpu'
seed = 0

obs = 'image'
chunk_size = 50               # 1.7 seconds
n_action_steps = 50
dim_model = 128
n_heads = 4
dim_feedforward = 512
n_vae_encoder_layers = 2
dropout = 0.0
optimizer_lr_backbone = 1e-4  # its weights are random, and there are few steps

batch_size = 8
max_steps = 400
lr = 2e-4                     # at 1e-3 all actions of a chunk become one (docs/act.md)
lr_schedule = 'cosine'
warmup_steps = 50
weight_decay = 1e-4
grad_clip = 10.0
val_every = 100
save_every = 100
