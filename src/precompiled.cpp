// A target with precompiled headers needs a source; other targets reuse its header.
