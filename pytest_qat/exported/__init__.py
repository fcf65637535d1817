"""An ExportedProgram: how it is made, what is put right in it, and how it is described."""
