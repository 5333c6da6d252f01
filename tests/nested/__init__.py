"""A genuine kvm_amd on machines without one; see `machine`."""
