"""The scan under the names and signatures of other packages: `compat.mamba`, `compat.vim`, `compat.vmamba`.

Nothing here is imported by the rest of the package, and no package of another's name is installed. Only
`compat.mamba.install()` puts functions under the name `mamba_ssm`, for the running process.
"""
