//! kdbus transports for Linux: over kdbusd in user space, or over the kernel module.
