# ACT on a real humanoid, Unitree G1, that sees nothing but where its joints are; 85 recordings to learn from.
# The command that makes the data stands in config/g1_cpu.py.
inherit('g1_act_cpu.py')
dataset = 'lerobot_g1'
out_dir = 'out/g1_act_state'
obs = 'state'
batch_size = 32
max_steps = 1200
lr_schedule = 'constant'
weight_decay = 1.0            # against overfitting, as dropout is no help
ema_decay = 0.99
save_every = 100
best_metric = 'val/loss'      # it overfits soon; `best` names the checkpoint to use
val_batches = 32
