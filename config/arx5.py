# The best of the arm's runs here: D with all that helped (dev/LOG.md). About 15 minutes on a CPU core.
# unroll = 2 trains a second pass on the model's own predictions; velocity shows differences that a small
# network cannot take itself; EMA and twice the learning rate.
inherit('arx5_cpu.py')
out_dir = 'out/arx5'
hidden = 128
velocity = True
unroll = 2
lr = 2e-3
ema_decay = 0.998
