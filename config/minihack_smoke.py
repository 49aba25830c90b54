# Every part of DAgger once, in a minute: play, relabel, train, save.
inherit('minihack_dagger.py')
out_dir = 'out/minihack_smoke'

batch_size = 16
max_steps = 60
refresh_every = 20
episodes_per_iteration = 10
save_every = 20
log_every = 20
