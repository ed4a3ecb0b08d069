"""Found by Hydra, which reads every package below the namespace `hydra_plugins`."""
