"""What tests share: stand-ins for libraries and hardware, small models and data, defects to plant."""
