"""For notebooks and scripts: suggested rates and the loss around a point, as tables, figures and HTML."""
