"""An ``ImageTree`` served to the kernel's FUSE; nothing here knows where its bytes come from."""
