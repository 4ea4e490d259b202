/* A classic script, run before the first paint so that a dark page never flashes white. See theme.js. */
try {
  const theme = localStorage.getItem('lacuna.theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  /* storage forbidden: the system's theme it is */
}
