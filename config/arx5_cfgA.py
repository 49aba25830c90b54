# Published run cfgA: absolute actions in, absolute states out. Its card: validation loss 0.0982 at step 500k,
# gradient norm 0.034. We read that loss per member, in the unit of its target; our val/loss sums them.
# Data: python data/arx5/prepare.py --full
model = 'arx5_gpt'
dataset = 'arx5_full'          # ours: our own arm and commands, as many episodes and frames as the card says
out_dir = 'out/arx5_cfgA'
action_repr = 'absolute'
state_pred = 'absolute'
depth = 6
heads = 12
hidden = 384
history = 32
members = 2
batch_size = 128               # 64 for each member; ours: the card does not say per what
max_steps = 500_000
lr = 3e-4
min_lr = 3e-5
lr_schedule = 'cosine'
noise = 0.05
noise_steps = 50_000
noise_target = 'clean'         # ours: the card does not say what differences count from
warmup_steps = 2000            # ours
weight_decay = 0.1             # ours, nanoGPT's; likewise betas
betas = (0.9, 0.95)
grad_clip = 1.0                # ours, per member
log_every = 100
val_every = 5000
save_every = 5000
