"""Data sets held whole on the device: batches are gathers from one tensor. Imports torch; recipes do not."""
