"""In the place of mamba-ssm's compiled extension of this name, where mamba-ssm comes as a wheel without it.

`import mamba_ssm` imports it for Mamba-1, and without it the reference falls back to another model. Mamba-2, the one
that is compared, never calls it; what does call it fails on the first name it looks up here.
"""
