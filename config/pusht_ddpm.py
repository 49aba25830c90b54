# The same network as a diffusion policy. Published: --n_layer=8 --dropout=0.3, on 90 demonstrations.
inherit('pusht_imf.py')
objective = 'ddpm'
out_dir = 'out/pusht_ddpm'
