"""What the residual stream says on its way: lenses, probes, directions, patchscopes."""
