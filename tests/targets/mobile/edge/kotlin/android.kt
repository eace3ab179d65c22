// What the loading example uses of Android, without anything behind it.
package android.content

import java.io.InputStream

class AssetManager {
    fun open(name: String): InputStream = TODO()
}

abstract class Context {
    abstract val assets: AssetManager
}
