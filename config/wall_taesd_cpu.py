# The Wall world in latents: TAESD turns 64x64 pixels into 8x8 places of 4 numbers. Data, in minutes:
# python data/wall/prepare.py --vae=taesd --size=64 --limit=200 --out=data/wall_taesd_64
inherit('wall_cpu.py')
dataset = 'wall_taesd_64'
input = 'latent'               # as patch says: on pixels it would be a hundred times slower
out_dir = 'out/wall_taesd_cpu'
patch = 2
max_steps = 1500
