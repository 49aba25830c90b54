# The dot of wall_cpu.py with improved MeanFlow in place of denoising, for the time of its 1000 steps.
inherit('wall_cpu.py')
model = 'nanowm_imf'
out_dir = 'out/wall_imf'
context_t = -1
max_steps = 370                # a step costs 2.7 of the other's
