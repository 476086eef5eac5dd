"""The shape model: from 3D shapes, or from landmarks in photographs."""
