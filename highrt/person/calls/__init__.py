"""The calls of the service `strata.highrt.v1.Highrt`, a module for each kind of thing that they are about."""
