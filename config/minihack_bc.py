# The same planner by behaviour cloning. First: python data/minihack/prepare.py --oracle --memory
inherit('minihack_dagger.py')
dataset = 'minihack_oracle_memory'
out_dir = 'out/minihack_bc'

refresh_every = 0             # steps are counted, not what is played
val_every = 500
