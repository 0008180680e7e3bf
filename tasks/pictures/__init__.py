"""Pictures, made from files and never inside a training loop. The same content gives the same bytes, so that DVC sees a
change only where there is one."""
