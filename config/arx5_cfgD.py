# Published run cfgD: delta actions in, delta states out. Its card: validation loss 0.2282 at step 425k,
# gradient norm 4.295. We read that loss per member, in the unit of its target; our val/loss sums them.
# Everything else as in config/arx5_cfgA.py.
inherit('arx5_cfgA.py')
out_dir = 'out/arx5_cfgD'
action_repr = 'delta'
state_pred = 'delta'
