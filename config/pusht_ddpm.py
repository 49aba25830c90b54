# The same network as Diffusion Policy's transformer; published with --dropout=0.3.
inherit('pusht_imf.py')
objective = 'ddpm'
out_dir = 'out/pusht_ddpm'

steps = 100
