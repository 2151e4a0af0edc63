"""Tables, plots and pages from the files of runs. Reads CSV, JSON and YAML; never imports torch."""
