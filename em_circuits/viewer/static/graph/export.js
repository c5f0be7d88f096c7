// The view as a picture: PNG from the canvas as it is; SVG is drawn by the server.

function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function png(scene, name) {
  const copy = document.createElement("canvas");
  copy.width = scene.canvas.width;
  copy.height = scene.canvas.height;
  const context = copy.getContext("2d");
  context.fillStyle = scene.colours.gutter;
  context.fillRect(0, 0, copy.width, copy.height);
  context.drawImage(scene.canvas, 0, 0);
  copy.toBlob((blob) => save(`${name}.png`, blob));
}
