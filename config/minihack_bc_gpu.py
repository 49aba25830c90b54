# The published behaviour cloning, as many gradient steps as its DAgger: 5000 games of the teacher per level.
# First: data/minihack/prepare.py --episodes_per_env=5000 --out=data/minihack_oracle_5000
inherit('minihack_dagger_gpu.py')
dataset = 'minihack_oracle_5000'
out_dir = 'out/minihack_bc_gpu'

refresh_every = 0
lr = 3e-4
lr_schedule = 'cosine'
min_lr = 3e-5
val_every = 5000
save_every = 5000
