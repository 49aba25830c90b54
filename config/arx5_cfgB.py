# Published run cfgB: absolute actions in, delta states out. Its card: validation loss 0.4244 at step 490k,
# gradient norm 3.909. We read that loss per member, in the unit of its target; our val/loss sums them.
# Everything else as in config/arx5_cfgA.py.
inherit('arx5_cfgA.py')
out_dir = 'out/arx5_cfgB'
action_repr = 'absolute'
state_pred = 'delta'
