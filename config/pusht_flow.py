# The same network as flow matching, ten Euler steps; --steps=1 asks whether one would do.
inherit('pusht_imf.py')
objective = 'flow'
out_dir = 'out/pusht_flow'
