"""What a virtual machine boots: the distribution's kernel and an initrd made around our agent."""
