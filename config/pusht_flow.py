# The same network as flow matching: an Euler step per call.
inherit('pusht_imf.py')
objective = 'flow'
out_dir = 'out/pusht_flow'

steps = 10
