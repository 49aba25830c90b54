# Published run cfgC: delta actions in, absolute states out. Its card: validation loss 0.0764 at step 500k,
# gradient norm 0.040. We read that loss per member, in the unit of its target; our val/loss sums them.
# Everything else as in config/arx5_cfgA.py.
inherit('arx5_cfgA.py')
out_dir = 'out/arx5_cfgC'
action_repr = 'delta'
state_pred = 'absolute'
