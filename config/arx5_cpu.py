# A simulated robot arm in a minute or two on a CPU; also what bench/sweep.py sweeps. The data, in seconds:
# python data/arx5/prepare.py
model = 'arx5_gpt'
dataset = 'arx5_default'
out_dir = 'out/arx5_cpu'
depth = 2
heads = 4
hidden = 64
action_repr = 'delta'
state_pred = 'delta'
batch_size = 64                # 32 windows for each of the two members
max_steps = 2500
lr = 1e-3
min_lr = 1e-4
lr_schedule = 'cosine'
warmup_steps = 100
weight_decay = 0.1
betas = (0.9, 0.95)
log_every = 100
val_every = 500
save_every = 500
