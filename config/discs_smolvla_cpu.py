# SmolVLA from scratch on the discs, as config/discs_pi0_cpu.py does it with pi0; here nothing is frozen.
inherit('discs_pi0_cpu.py')
model = 'smolvla'
out_dir = 'out/discs_smolvla_cpu'
