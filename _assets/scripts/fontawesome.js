/* Empty on purpose: takes the place of the theme's 1.5 MB Font Awesome script. Its CSS and fonts draw every icon. */
